"""A model's thinking: told from its answer, and asked for through its chat template.

It knows neither tokens nor HTTP.
"""
