"""What every process needs around its work: settings, clients, ports with their adapters, leases, life cycle,
telemetry.
"""
