"""Teachers: frozen models that score the student's tokens."""

from lightning_opd.teachers.adapters import AdapterExpert, AdapterTeacher, JoinsBase, attach, teacher_of, tell_student
from lightning_opd.teachers.cross_tokenizer import CrossTokenizerTeacher
from lightning_opd.teachers.local import LocalTeacher
from lightning_opd.teachers.mixture import MixtureTeacher
from lightning_opd.teachers.pool import TeacherPool
from lightning_opd.teachers.privileged import PrivilegedTeacher
from lightning_opd.teachers.server import ServerTeacher

__all__ = [
    "AdapterExpert",
    "AdapterTeacher",
    "CrossTokenizerTeacher",
    "JoinsBase",
    "LocalTeacher",
    "MixtureTeacher",
    "PrivilegedTeacher",
    "ServerTeacher",
    "TeacherPool",
    "attach",
    "teacher_of",
    "tell_student",
]
