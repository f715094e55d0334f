"""From a sweep file to cells with ids, and from cells to trajectories. Imports nothing heavy."""
