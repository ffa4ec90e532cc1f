"""What `offline_results` runs: two tasks, how their data sets are made, and the algorithms with their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PLAIN_BC = "std_parameterization=uniform dropout=0 hidden_widths=256,256"
CQL = "--algorithm_options sampled_actions=4 actor_learning_rate=3e-4 hidden_widths=256,256"
SHARED = "--threads 1 --video_episodes 0 --save_interval 0"


@dataclass(frozen=True)
class Making:
    """A command that makes something of a data set.

    Attributes:
        makes: file or folder below the folder of the runs; once it is there the command is not run.
        module: the command.
        flags: with ``{runs}`` for the folder of the runs.
    """

    makes: str
    module: str
    flags: str

    def of(self, runs: Path) -> str:
        """The flags in a folder of runs."""
        return self.flags.format(runs=runs)


@dataclass(frozen=True)
class Case:
    """An algorithm with settings.

    Attributes:
        title: what tables and pictures call it.
        flags: of ``train_offline``.
        seeds: only the first so many of the seeds, for a comparison on the side; None for all.
    """

    title: str
    flags: str
    seeds: int | None = None


@dataclass(frozen=True)
class Task:
    """A task, its data sets and the cases.

    Attributes:
        title: of the page.
        env: gymnasium id.
        data: files below the folder of the runs, by what the tables call them.
        making: what makes them, in order.
        cases: by name.
        updates: gradient steps of every run.
        flags: that all runs share.
        text: how the runs were made; ``{updates}`` stands for their gradient steps.
        findings: what the figures say.
        published: scores of a published data set with these algorithms, by case.
    """

    title: str
    env: str
    data: Mapping[str, str]
    making: tuple[Making, ...]
    cases: Mapping[str, Case]
    updates: int
    flags: str
    text: str
    findings: str = ""
    published: Mapping[str, float] = field(default_factory=dict)


_BEGINNERS = " ".join("{runs}/pickcube_policy/checkpoint_" + f"{step}.pth" for step in (1000, 3000, 5000))

_PICKCUBE_TEXT = """\
Every algorithm learns from the same files: {updates} gradient steps of 256 transitions, gamma 0.95, the state
scaled by the data's statistics. A third of the episodes is the scripted expert's (motion noise 0.1), a third is the
same expert's with a hand that shakes (0.7), and a third comes from the sampled policies of three checkpoints of an
online run that has hardly begun. Failures stay in; in steps, more than half of the data is the beginners'. The
reward is 1 at success and 0 before, so no true value is above 1.

*Success*: of 50 fresh episodes after the last gradient step, mean ± sample standard deviation over the seeds. *Best
evaluation*: the best of those along the way, 20 episodes each, which is what one would get by choosing afterwards.
*Q* after the last gradient step, over rows of the data: at the data's actions and at the policy's. *Return of the
data*: mean discounted Monte-Carlo return from every transition on. *Distance*: mean square of a coordinate of the
policy's action minus the data's. The seed decides weights and batches; the data are the same. Minutes are of one
thread on a machine that did other work too: no measure of speed. In the picture the last point is of the 50 fresh
episodes; dashed: one seed, for comparison."""

_PICKCUBE_FINDINGS = """\
Settings were chosen by the success of trial runs with seed 0, most of them from 200 episodes: TD3+BC's alpha of
0.25 and 1, IQL's beta of 3, 10 and 30, CQL's after four trials, ReBRAC's after two; Cal-QL has CQL's and SAC is as it
comes. So the figures of seed 0 flatter a little.

* **SAC** never succeeds. Nothing in the data contradicts its critics about actions that the data do not have: its
  policy is far away from the data, and its mean Q(policy) is above 1, which no return is, in five of the six runs.
* **BC** imitates all three. With one learned standard deviation it succeeds in a part of the episodes, and from 50
  episodes it learns by heart: its best evaluation is twice its last. With a standard deviation per state, the
  default of HIL-SERL's launcher, it never does in the one run from each file.
* **IQL** needs a beta that suits the advantages. Here these are a few hundredths, so beta 3 gives every step nearly
  the same weight, which is BC. With beta 30 it is near TD3+BC from 200 episodes; from 50 it learns by heart as BC
  does.
* **CQL** needs rewards of some size: with rewards times 20, and alpha and temperature likewise, it succeeds from
  both files. The likely reason is its penalty's log-sum-exp, which hardly tells values between 0 and 1 apart:
  everything outside the data is pushed down alike, what the policy picks is not. The values in its row are of the
  larger rewards, at most 20. It draws 4 actions where the paper draws 10, for time.
* **Cal-QL** with CQL's settings does as well in five of six runs. Seed 0 from 200 episodes is at 80 % after 2,000
  gradient steps and at 0 % from 3,000 on, with values like those of the other seeds. With that seed alpha 2 ended at
  100 % and alpha 5 at 0 %: evaluate on the way.
* **TD3+BC** with alpha 0.25 succeeds from both files, with values that stay possible.
* **ReBRAC** with the penalties published for OGBench's cube (1 and 0) comes near it, with more spread over the seeds.

Q(policy) above Q(data) is no failure by itself on mixed data: TD3+BC and CQL succeed with it. Values that no return
can have are."""

PICKCUBE = Task(
    title="Offline learning from data of mixed quality: PickCube",
    env="serl_robots/PickCube-v0",
    data={"50 episodes": "pickcube_mixed_50.pkl", "200 episodes": "pickcube_mixed_200.pkl"},
    making=(
        Making("pickcube_20.pkl", "serl_fast.record_demos", "--num_demos 20 --output {runs}/pickcube_20.pkl"),
        Making(
            "pickcube_policy",
            "serl_fast.train_hybrid",
            "--demo_paths {runs}/pickcube_20.pkl --save_dir {runs}/pickcube_policy --threads 1 --synchronous "
            "--max_utd_ratio 1 --operator scripted --training_starts 300 --random_steps 0 --stop_success_rate 0 "
            "--final_eval_episodes 0 --video_episodes 0 --save_replay=False --eval_interval 500 --save_interval 500 "
            "--max_steps 5000 --seed 100",
        ),
        *(
            Making(
                f"pickcube_mixed_{episodes}.pkl",
                "benchmarks.offline_pickcube",
                f"--episodes {episodes} --checkpoints {_BEGINNERS} --output {{runs}}/pickcube_mixed_{episodes}.pkl",
            )
            for episodes in (50, 200)
        ),
    ),
    cases={
        "td3bc": Case("TD3+BC", "--algorithm td3bc --algorithm_options alpha=0.25"),
        "iql30": Case("IQL, beta 30", "--algorithm iql --algorithm_options expectile=0.9 beta=30"),
        "sac": Case("SAC", "--algorithm sac"),
        "bc_one": Case("BC, one learned std", f"--algorithm bc --algorithm_options {PLAIN_BC}"),
        "cql": Case(
            "CQL, rewards times 20", f"--algorithm cql --reward_scale 20 {CQL} alpha=1 initial_temperature=0.2"
        ),
        "calql": Case(
            "Cal-QL, rewards times 20", f"--algorithm calql --reward_scale 20 {CQL} alpha=1 initial_temperature=0.2"
        ),
        "rebrac": Case("ReBRAC", "--algorithm rebrac --algorithm_options actor_penalty=1 critic_penalty=0"),
        "cql_unscaled": Case("CQL", f"--algorithm cql {CQL} alpha=0.05 initial_temperature=0.01", 1),
        "iql": Case("IQL, beta 3", "--algorithm iql --algorithm_options expectile=0.9", 1),
        "bc": Case("BC, a std per state", "--algorithm bc", 1),
    },
    updates=5000,
    flags="--discount 0.95 --eval_interval 1000 --eval_episodes 20 --final_eval_episodes 50",
    text=_PICKCUBE_TEXT,
    findings=_PICKCUBE_FINDINGS,
)

_HALFCHEETAH_TEXT = """\
A file in D4RL's layout that was made here and is read back by this project's reader: our own SAC (LayerNorm
critics, one gradient step per environment step) was stopped at a checkpoint of medium quality, whose policy then
drew its actions for 100 episodes. Every algorithm takes {updates} gradient steps of 256 transitions, gamma 0.99,
the state scaled by the data's statistics. TD3+BC and IQL have this project's defaults, which are the published ones
for MuJoCo but for IQL's cosine decay of the actor's learning rate. BC has two layers of 256 and one learned
standard deviation.

Scores are D4RL's, 100 (R - random) / (expert - random), of 10 fresh episodes after the last gradient step, mean ±
sample standard deviation over the seeds, the mode acting. The data's own score is of sampled actions. **The
published column is about ANOTHER data set**: D4RL's halfcheetah-medium-v2 has a million steps of a different
policy, and its rows (CORL, last checkpoint) take a million gradient steps. It is there to show the order of
magnitude and no more. The environment is gymnasium's HalfCheetah-v4 on a newer MuJoCo than D4RL's. In the picture
all but the last point are of 3 episodes."""

_HALFCHEETAH_FINDINGS = """\
BC's return over the data's is the sanity check of such a file. It is a little above 1 because modes act here, while
the data are of sampled actions: the mode of the policy that made them had 5,164 in its own evaluation. IQL is above
BC from 10,000 gradient steps on. TD3+BC fails for the first 15,000 and still swings at the end, probably because
its actor maximises values that have only just reached their size: Q(data) is 418, the data's mean discounted return
about 430."""

HALFCHEETAH = Task(
    title="Offline learning on a D4RL file made here: HalfCheetah",
    env="HalfCheetah-v4",
    data={"medium, 100 000 steps": "halfcheetah_medium.hdf5"},
    making=(
        Making(
            "halfcheetah_sac",
            "serl_fast.train_hybrid",
            "--env HalfCheetah-v4 --setup_mode single-arm-fixed-gripper --threads 1 --discount 0.99 --activation relu "
            "--temperature_init 1.0 --target_entropy -6 --backup_entropy=True --cta_ratio 1 --synchronous "
            "--max_utd_ratio 1 --max_steps 80000 --training_starts 5000 --random_steps 5000 --eval_interval 10000 "
            "--eval_episodes 3 --save_interval 10000 --stop_success_rate 0 --save_replay=False "
            "--final_eval_episodes 0 --video_episodes 0 --log_interval 2000 --seed 0 --save_dir {runs}/halfcheetah_sac",
        ),
        Making(
            "halfcheetah_medium.hdf5",
            "benchmarks.offline_halfcheetah",
            "--run {runs}/halfcheetah_sac --steps 100000 --output {runs}/halfcheetah_medium.hdf5",
        ),
    ),
    cases={
        "bc": Case("BC", f"--algorithm bc --algorithm_options {PLAIN_BC} activation=relu layer_norm=False"),
        "td3bc": Case("TD3+BC", "--algorithm td3bc"),
        "iql": Case("IQL", "--algorithm iql"),
    },
    updates=50_000,
    flags="--discount 0.99 --eval_interval 5000 --eval_episodes 3 --final_eval_episodes 10 --log_interval 1000",
    text=_HALFCHEETAH_TEXT,
    findings=_HALFCHEETAH_FINDINGS,
    published={"bc": 42.4, "td3bc": 48.1, "iql": 48.3, "rebrac": 64.0, "cql": 47.0},
)

TASKS = {"pickcube": PICKCUBE, "halfcheetah": HALFCHEETAH}
