"""Pages for people: staff, buyers, readers of the API. Plain HTML, CSS and JavaScript modules, served as they are."""
