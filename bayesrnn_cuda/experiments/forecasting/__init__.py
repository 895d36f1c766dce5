"""Forecasts of synthetic series whose intervals are held against an oracle: do they cover?"""
