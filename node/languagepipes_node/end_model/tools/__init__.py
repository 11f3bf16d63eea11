"""Calls of tools: read out of answers by each model family's format, and written into prompts by its template.

It knows neither tokens nor HTTP.
"""
