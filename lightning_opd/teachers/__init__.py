"""Teachers: frozen models that grade the student's tokens."""

from lightning_opd.teachers.local import LocalTeacher
from lightning_opd.teachers.pool import TeacherPool

__all__ = ["LocalTeacher", "TeacherPool"]
