"""From the results of runs to tables and figures; reads files only."""
