"""A model that clients reach by HTTP.

Read in this order: `requests` (what may be asked), `engine` (one thread that draws all texts), `service`
(from requests to texts and back, without HTTP), `description` (OpenAPI), `app` (HTTP).
"""
