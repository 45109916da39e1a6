"""`--dry-run`: what a command would do, what of it is there already, and what the rest would cost.

A planner a command, from its options to a `Plan` of `Step`s; `pace` measures how fast this machine runs the network at hand.
Nothing is written, neither into run folders nor into the cache. Costs are in block forwards, one input through one block.
"""
