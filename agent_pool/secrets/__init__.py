"""The secrets of agents: kept encrypted, given to those that they were set for, and kept out of what agents print."""
