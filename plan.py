"""What training costs, before it runs: `python plan.py +scale=xl` for the paper's four stages. Nothing is written."""

from microdit.commands.entry_points import plan

if __name__ == "__main__":
    plan()
