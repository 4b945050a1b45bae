"""What tests lean on: the scripted relay, its certificates, factories, clocks."""
