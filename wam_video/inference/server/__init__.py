"""Serving a policy to the clients that robot teams already run; `app` is the server, `wire` what is said over the line."""
