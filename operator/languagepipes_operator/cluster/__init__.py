"""The operator on a cluster: observe, plan, apply, report."""
