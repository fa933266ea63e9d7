"""Predict: how much is right without looking? · 预测：不看图能对多少？

A program gives the same answer to all 256 photos of vl_insurance/sample: for each of the six fields (mileage, unit, speed,
time, temperature, gear) its commonest value, "not shown" included. How many percent of all fields does it get right? A model
has to be better than that before anybody says that it sees. Guess, write the number, then run the check. Within 6 is right.

一个程序对 vl_insurance/sample 的 256 张照片都给出同一个回答：六个字段（总里程、单位、速度、时间、温度、挡位）各取最常见的值，
包括“未显示”。全部字段里它答对百分之几？模型要超过这个数，才谈得上看懂了图。先猜，写下数字，再运行检查。差 6 以内算对。
"""

PREDICTION = None  # percent
