"""Who is calling: passwords, access tokens, refresh families, limits against guessing."""
