"""HTTP, apart from any subject: the guard before Robyn, routing, problems, the OpenAPI document."""
