"""The Postman collection is up to date and complete."""

from __future__ import annotations

import json

from tests.contract import postman


def test_the_collection_is_up_to_date() -> None:
    assert postman.FILE.read_text(encoding="utf-8") == postman.text(), "renew: python -m tests.contract.postman"


def test_every_operation_is_in_the_collection() -> None:
    services = postman.documents()
    wanted = {
        (method.upper(), path.replace("{", "{{").replace("}", "}}"))
        for document in services.values()
        for path, operations in document["paths"].items()
        for method in operations
    }
    made = json.loads(postman.text())
    found = {
        (item["request"]["method"], item["request"]["url"]["raw"].partition("_url}}")[2])
        for service in made["item"]
        for folder in service["item"]
        for item in folder["item"]
    }
    assert found == wanted
