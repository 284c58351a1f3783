"""What was drawn, told afterwards: joules, carbon, money; budgets, receipts and cards."""
