"""Authentication: passwords, access tokens, refresh tokens, mailed tokens, ended sessions.

Uses the accounts of `users`.
"""
