"""A model that clients reach by HTTP.

Read in this order: `requests` (what may be asked), `engine` (one thread that draws all texts), `service`
(from requests to texts and back, without HTTP), `description` (OpenAPI), `messages` (bodies, events and
errors), `drawn` (texts as they come), `app` (paths, and who may use them), `connection` (limits in seconds), `running` (a process).
"""
