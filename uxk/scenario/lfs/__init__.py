"""The log-structured volume in scenarios: its workloads, the comparison of policies, its figures."""
