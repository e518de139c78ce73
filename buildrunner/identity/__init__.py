"""Identity tokens of builds: OpenID Connect tokens that identify a build.

Start with `tokens`, which makes the claims of a build and signs them. `keys` has the keys of a
server, with their rotation. The server publishes the public keys (`server.api.identity`); steps get
tokens from the metadata server of their sandbox (`metadata`).
"""
