"""A file for each kind of child: a pure function from a pipe and its plan to what the API server shall hold."""
