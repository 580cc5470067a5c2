"""How the cluster is made.

All of it lives in namespaces of its own: one for processes, one for mounts, one for the network. `inside` is the first
process there and starts the rest. Ending it ends everything: the kernel kills what is in a process namespace whose first
process is gone, and unmounts and unlinks what no process can see any more. Left on the machine are then one pair of
network devices (gone with the network namespace), empty control groups, and files; `cluster.down` removes those.
"""
