"""How the cluster works.

It runs in its own process, mount and network namespaces. `inside` is the first process there and starts all others.
Killing it ends everything: the system kills the other processes of its namespace, and releases the mounts. What remains
on the machine is a pair of network devices (removed with the network namespace), empty control groups, and files.
`cluster.down` removes those.
"""
