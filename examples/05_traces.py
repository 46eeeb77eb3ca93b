"""Actor–critic that learns at every step: what eligibility traces are worth.

One step:   θ += α δ γ^t ∇log π(A|S)           δ = R + γ v̂(S′) − v̂(S)
Traces:     z ← γλ z + γ^t ∇log π(A|S);  θ += α δ z     (Sutton & Barto, p. 332)

With λ = 0 only the last action is credited with δ; with λ > 0 those before it are as well, each γλ times less. γ^t is left
out here, as is usual: with it, what comes late in an episode would hardly be learned.
"""

from upslope import OnlineActorCritic, control, train

LOW, HIGH = (-2.4, -3, -0.21, -3.5), (2.4, 3, 0.21, 3.5)  # CartPole's velocities have no limits

print("mean return of the episodes in 4 stretches of 400 steps")
for trace_decay in (0.0, 0.8):
    envs = control.make("CartPole-v1", seed=0)
    policy = control.LinearPolicy.for_envs(envs, features="tiles", num_tilings=8, num_tiles=6, feature_low=LOW, feature_high=HIGH)
    algorithm = OnlineActorCritic(
        learning_rate=0.002, value_learning_rate=0.02, trace_decay=trace_decay, value_trace_decay=trace_decay, discount_weight=False
    )
    returns: list[float] = []
    note = [lambda state, returns=returns: returns.append(state.metrics.get("episode_return", float("nan")))]
    train(algorithm, policy, control.Stream(envs, num_steps=400), iterations=4, callbacks=note)
    print(f"λ = {trace_decay}:", "  ".join(f"{value:6.1f}" for value in returns))
