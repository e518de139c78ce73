"""The metadata server of a build, in the form of Compute Engine's.

Steps read their project, service account and access tokens from it. Start with `server`;
`google_credentials` obtains the tokens.
"""
