//! The exactly-once suite: every promise on every catalog and every store.
//!
//! The tests are functions of a world. Here each becomes one test per world, under the world's name, so
//! that a run shows what ran where. Another catalog or store is one more line at the end.

/// Where the tests are written down.
mod promises {
    pub(super) use crate::faults::*;
    pub(super) use crate::flow::*;
    pub(super) use crate::plans::*;
    pub(super) use crate::quarantine::*;
    pub(super) use crate::*;
}

macro_rules! keeps {
    ($world:expr; $($promise:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $promise() {
                // On the heap: with its world in it, a promise is large.
                Box::pin(super::promises::$promise($world)).await;
            }
        )*
    };
}

macro_rules! every_promise_on {
    ($name:ident, $world:expr) => {
        mod $name {
            use crate::world::World;

            keeps! {
                $world;
                ack_is_sent_only_after_commit,
                replays_overlaps_and_reconnects_store_every_event_once,
                streams_that_arrive_out_of_order_are_stored_in_order,
                a_lost_ack_is_given_again,
                a_gap_is_answered_with_retry,
                an_agent_whose_history_is_not_in_the_table_learns_the_watermark,
                every_sequence_is_an_event_or_in_quarantine,
                a_batch_of_nothing_but_quarantine_moves_the_watermark,
                each_epoch_has_its_own_watermark,
                a_crash_before_the_commits_loses_nothing,
                a_crash_between_quarantine_and_events_doubles_nothing,
                a_crash_before_the_acks_doubles_nothing,
                two_collectors_with_the_same_batch_store_it_once,
                a_batch_that_another_collector_has_in_part_is_completed,
                a_batch_that_another_collector_has_and_more_is_dropped,
                quarantine_of_a_lost_race_is_not_repeated,
                a_gap_that_another_collector_has_filled_is_none,
                many_agents_on_two_collectors_lose_and_double_nothing,
                a_full_budget_slows_the_agent_and_loses_nothing,
                a_graceful_stop_commits_and_acks_what_is_staged,
                what_a_stricter_plan_has_quarantined_before_a_crash_is_not_stored_as_well,
                what_a_milder_plan_let_through_before_a_crash_is_not_lost,
                a_quarantine_watermark_that_is_ahead_hides_no_event,
                two_plans_at_once_put_no_event_into_both_tables_or_none,
                a_replay_killed_before_it_writes_is_finished_by_the_next,
                a_replay_killed_before_it_commits_is_finished_by_the_next,
                a_replay_killed_after_its_commit_is_found_done_by_the_next,
                two_replays_at_once_add_every_event_once,
            }
        }
    };
}

every_promise_on!(sqlite, World::new());
every_promise_on!(postgres, World::on_postgres().await);
every_promise_on!(rest, World::on_rest());
every_promise_on!(s3, World::on_s3());
every_promise_on!(postgres_and_s3, World::on_postgres_and_s3().await);
