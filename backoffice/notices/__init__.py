"""Notices for their readers: the choices of an account, its browsers for web push, and previews for staff."""
