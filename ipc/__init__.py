"""How the processes of one fleet talk: messages over ZMQ, token records through shared-memory rings, liveness and
metrics in shared pages. Standard library, zmq, msgspec and prometheus_client only; imports nothing of ours."""
