"""Teachers with another tokenizer: everything that reads their tokens."""

from lightning_opd.teachers.cross_tokenizer.teacher import CrossTokenizerTeacher

__all__ = ["CrossTokenizerTeacher"]
