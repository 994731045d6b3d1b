"""Teachers: frozen models that grade the student's tokens."""

from lightning_opd.teachers.local import LocalTeacher
from lightning_opd.teachers.pool import TeacherPool
from lightning_opd.teachers.privileged import PrivilegedTeacher

__all__ = ["LocalTeacher", "PrivilegedTeacher", "TeacherPool"]
