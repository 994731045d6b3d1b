"""Rows of files, tables and lists, and the prompts that are made of them."""
