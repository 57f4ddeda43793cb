"""Notices in words: the letter and the web push of each kind, in each language. Reads templates, performs no other I/O.

A language is a folder of `languages/`: `language.toml`, and a text and an HTML template of each kind of letter. The
notification worker sends these words, the backoffice previews them.
"""
