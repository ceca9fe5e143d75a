"""The description of the API that /openapi.json serves, made from the structs that decode the requests."""
