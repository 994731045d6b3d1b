"""Teachers: frozen models that grade the student's tokens."""

from lightning_opd.teachers.local import LocalTeacher
from lightning_opd.teachers.pool import TeacherPool
from lightning_opd.teachers.privileged import PrivilegedTeacher
from lightning_opd.teachers.retokenized import RetokenizedTeacher

__all__ = ["LocalTeacher", "PrivilegedTeacher", "RetokenizedTeacher", "TeacherPool"]
