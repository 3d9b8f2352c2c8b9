"""What tests share: clocks, a task's surroundings, an Etlworks to talk to, and state that outlives a try."""
