"""Floor 6: is it true?"""
