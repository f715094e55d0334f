"""What a sweep costs: memory, hours, GPU-hours, money and bytes, each with what it rests on. Imports nothing heavy."""
