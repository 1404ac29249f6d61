"""How many workers an agent has, and whether it has any: the decisions, what they are made from, who acts on them."""
