"""/v1/messages (https://docs.anthropic.com/en/api/messages): another form of a chat and its answer, with errors in it.

It knows content blocks and events; what is generated, and how, is the chat route's.
"""
