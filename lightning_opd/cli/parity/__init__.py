"""The parity report: does the merged student do what each teacher does at home?"""
