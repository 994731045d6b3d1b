"""The parity report: does the merged student solve what each teacher solves in its own domain?"""
