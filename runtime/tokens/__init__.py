"""Access tokens: key rings, outside issuers, ended sessions."""
