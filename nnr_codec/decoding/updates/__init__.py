"""Updates and their bases: streams that are added to each other, tensor by tensor."""
