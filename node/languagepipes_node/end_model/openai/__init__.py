"""The OpenAI API in front of the engine: HTTP, JSON and text on this side, token ids on the other.

Public: `app.create_app`, `server.ApiServer`, `bridge.EngineBridge`, `bridge.EngineHandle`, `auth.ApiKeys`.
"""
