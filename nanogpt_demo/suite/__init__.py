"""The resilience suite: many small runs that compare ARS with its peers in sickness and health."""
