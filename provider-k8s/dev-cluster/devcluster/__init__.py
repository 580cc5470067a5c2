"""How the cluster works.

It runs in its own process, mount and network namespaces. `inside` is the first process there and starts all others.
If it is killed, the system kills the other processes of its namespace, releases the mounts, and removes the pair of
network devices. Empty control groups, changed settings of the machine, and files remain. `cluster.down` removes the
groups and files, and restores the settings.
"""
