"""A teacher and judge by rules, which speaks the OpenAI API and sees the text of a request alone, as a model would.

It knows the micro world's captions, and of other pictures' says what their captions say.
"""
