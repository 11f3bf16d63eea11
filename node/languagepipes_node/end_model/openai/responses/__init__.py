"""/v1/responses (https://platform.openai.com/docs/api-reference/responses): another form of a chat and its answer.

It knows items, events and what is stored; what is generated, and how, is the chat route's.
"""
